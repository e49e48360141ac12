"""Ways to draw nearly the same picture for less; one file each, found by its name. None is on unless it is named."""
