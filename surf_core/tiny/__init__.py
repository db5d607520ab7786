"""The embedded models: a tiny text-to-video model, its VAE, prompts and refiner."""
