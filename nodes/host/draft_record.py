"""Write into a LATENT what made it, and read it: seed, settings, kind of latents.

Samplers of the host copy the keys of the LATENT that they start from, so a run of ours writes the
record anew, and what no longer is a draft drops it.
"""

from typing import Any

KEY = "surf_draft"
"""Key of a LATENT: {name: number, text or bool} of the run that made it."""
SEED, FORMAT, MODEL = "seed", "latent_format", "model"
"""Names in a record: the seed of the run, the host's class of its latents, that of its model."""
LARGEST_SEED = 2**64 - 1


def record_of(latent: dict) -> dict[str, Any]:
    """Return what a LATENT says of the run that made it, {} where it says nothing."""
    record = latent.get(KEY)
    return dict(record) if isinstance(record, dict) else {}


def with_record(latent: dict, **more: Any) -> dict:
    """Return a copy of a LATENT with more in its record."""
    return {**latent, KEY: {**record_of(latent), **more}}


def format_name(model: Any) -> str:
    """Name the kind of latents that a MODEL makes: the host's class."""
    return type(model.get_model_object("latent_format")).__name__


def maker(model: Any) -> dict[str, str]:
    """Return what a record says of the MODEL: the host's classes of its latents and of itself."""
    return {FORMAT: format_name(model), MODEL: type(model.model).__name__}


def check_made_of(model: Any, latent: dict, name: str) -> None:
    """Refuse latents of a kind that their record says this MODEL does not make.

    Families share numbers of channels, so shapes alone do not tell.

    Raises:
        ValueError: says which kinds.
    """
    record, wanted = record_of(latent), format_name(model)
    made_of, by = record.get(FORMAT), record.get(MODEL)
    if isinstance(made_of, str) and made_of != wanted:
        of = f", of {by[:100]}" if isinstance(by, str) else ""
        raise ValueError(
            f"{name}: expected latents of the kind {wanted} for {type(model.model).__name__}, got "
            f"a draft of the kind {made_of[:100]}{of}; connect a model with the VAE of the one "
            "that made the draft."
        )
