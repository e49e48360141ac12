"""The networks: U-Net, autoencoder, text encoder, discriminator and judges."""
