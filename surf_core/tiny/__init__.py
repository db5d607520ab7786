"""The embedded default: a tiny text-to-video model, its codec and its prompts."""
