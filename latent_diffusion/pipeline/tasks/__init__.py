"""One file a task: text to image, image to image, hires, interpolation, inpainting, outpainting."""
