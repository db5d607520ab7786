"""The adapter: the only place that imports comfy, folder_paths and latent_preview."""
