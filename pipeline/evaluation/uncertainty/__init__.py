"""How sure the figures are: variances of AUCs, and the interval that each figure gets."""
