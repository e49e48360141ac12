"""Layers that the models are made of; tensor names inside them are diffusers' names."""
