"""The breasts that a report shows: which, from where, with what the models saw."""
