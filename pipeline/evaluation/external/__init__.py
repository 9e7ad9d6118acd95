"""A run beyond its own folds: what carries over to other patients, who was seen before, tables of cases."""
