"""Any folder of images with classes: the same model and trainer on another task."""
