"""Make several drafts of one start, look at them, choose one, make it again."""

from comfy_api.latest import io

from .host.drafts import HOW, choose, flatten, listed, made_again, show, single, start_drafts
from .host.node import checks_inputs, declare, names_errors


class SurfStartDrafts(io.ComfyNode):
    """Repeat a start latent for the sampler after it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfStartDrafts",
            display_name="Surf Start Drafts",
            category="SURF",
            description="Repeats the latent that a sampler starts from, so that any sampler makes "
            "several drafts of one seed: one after the other with the memory of one, or as a "
            "batch.",
            search_aliases=["variations", "repeat latent batch", "several seeds", "surf"],
            inputs=[
                declare(
                    io.Latent.Input, "latent",
                    tooltip="The latent to start from, as the sampler would take it. Its noise "
                    "mask, and its sound, go along.",
                ),
                declare(
                    io.Int.Input, "count", default=4, min=1, max=64,
                    tooltip="Drafts to make. Each has noise of its own, from the seed and its "
                    "number.",
                ),
                declare(
                    io.Combo.Input, "how", options=list(HOW), default=HOW[0],
                    tooltip="one by one: the sampler runs once for each draft, with the memory of "
                    "one; any model. as a batch: all in one run; not with sound.",
                ),
            ],
            outputs=[
                declare(
                    io.Latent.Output, "latent", is_output_list=True,
                    tooltip="For the sampler's latent_image; what comes after it runs once for "
                    "each draft, up to Surf Drafts.",
                )
            ],
        )  # fmt: skip

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, latent, count, how) -> io.NodeOutput:
        """Repeat; the input stays as it is."""
        return io.NodeOutput(start_drafts(latent, count, how))


class SurfDrafts(io.ComfyNode):
    """Show drafts, numbered, and pass one on."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfDrafts",
            display_name="Surf Drafts",
            category="SURF",
            description="Shows all drafts, numbered and moving, and passes on the one that index "
            "names, with the seed and the noise that it was made with. Another index runs nothing "
            "before this node again.",
            search_aliases=["pick", "choose preview", "latent from batch", "select", "surf"],
            inputs=_inputs(),
            outputs=[
                declare(
                    io.Latent.Output, "draft",
                    tooltip="The chosen draft, for Surf Refiner or Surf Save Draft.",
                )
            ],
            is_output_node=True,
            is_input_list=True,
        )  # fmt: skip

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, drafts, index, fps, vae=None, model=None, seed=None) -> io.NodeOutput:
        """Choose before anything is decoded; the inputs stay as they are."""
        items = flatten(listed(drafts))
        fps, vae, model = single(fps, "fps"), single(vae, "vae"), single(model, "model")
        draft = choose(items, single(index, "index"), listed(seed), model)
        return io.NodeOutput(draft, ui=show(items, fps, vae, model))


class SurfFinishDraft(io.ComfyNode):
    """Say what a sampler needs to make a draft again."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfFinishDraft",
            display_name="Surf Finish Draft",
            category="SURF",
            description="Gives any sampler the start latent and the seed of a draft, so that it "
            "makes it again, for instance at full resolution to the end.",
            search_aliases=["same seed", "full resolution", "noise of a draft", "surf"],
            inputs=[
                declare(
                    io.Latent.Input, "draft",
                    tooltip="The chosen draft, of Surf Drafts or Surf Load Draft.",
                ),
                declare(
                    io.Latent.Input, "start",
                    tooltip="The latent that its sampler started from, as it goes to Surf Start "
                    "Drafts.",
                ),
                declare(
                    io.Model.Input, "model", optional=True,
                    tooltip="The model that will make the draft again: a draft of another kind of "
                    "latents is refused before it runs. Surf Reshift KSampler needs none here.",
                ),
            ],
            outputs=[
                declare(
                    io.Latent.Output, "latent",
                    tooltip="The start latent with the draft's number: for latent_image of a "
                    "sampler, which draws the draft's noise for it.",
                ),
                declare(
                    io.Int.Output, "seed",
                    tooltip="The seed of the draft: for the sampler's seed or noise_seed.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, draft, start, model=None) -> io.NodeOutput:
        """Number the start; the inputs stay as they are."""
        return io.NodeOutput(*made_again(draft, start, model))


def _inputs() -> list[io.Input]:
    """Declare the inputs of Surf Drafts, in the order of saved workflows."""
    return [
        declare(
            io.Latent.Input, "drafts",
            tooltip="Latents of a sampler after Surf Start Drafts, or one latent of several items.",
        ),
        declare(
            io.Int.Input, "index", default=1, min=1, max=4096,
            tooltip="Number of the draft to pass on, as the preview shows it, from 1.",
        ),
        declare(
            io.Float.Input, "fps", default=16.0, min=1.0, max=120.0, step=1.0,
            tooltip="Frames a second of the videos, for the preview alone.",
        ),
        declare(
            io.Vae.Input, "vae", optional=True,
            tooltip="The VAE of the model: decodes the drafts for the preview, once. Empty: the "
            "rough colours that ComfyUI shows while it samples.",
        ),
        declare(
            io.Model.Input, "model", optional=True,
            tooltip="The model that made the drafts: says which colours its latents have, where no "
            "vae is connected, and is kept with the draft. Drafts of Surf Reshift KSampler say it "
            "themselves.",
        ),
        declare(
            io.Int.Input, "seed", optional=True, force_input=True, min=0, max=2**64 - 1,
            tooltip="The seed of the sampler that made the drafts, to be kept with them. Surf "
            "Reshift KSampler writes its own.",
        ),
    ]  # fmt: skip
