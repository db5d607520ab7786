"""The embedded models: a tiny text-to-video model, its codec, prompts, refiner and mask."""
