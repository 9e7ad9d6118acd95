"""The woman's age beside the pixels: a cross-fitted regression, and what each of the two adds."""
