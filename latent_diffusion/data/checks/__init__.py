"""What is wrong with a data set: the check before training, and the examination of `doctor`."""
