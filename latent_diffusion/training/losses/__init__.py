"""What a prediction is compared with: conditions, masks, priors and the denoising loss itself."""
