"""From a request to its pictures: the queue, its jobs, the worker, and the models that are drawn with."""
