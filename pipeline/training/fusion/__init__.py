"""The training of models that judge a breast by all its images."""
