"""Save a draft, and take it up after a restart."""

from comfy_api.latest import io

from .host.drafts import check_draft_file, draft_names, fingerprint, graph_of, load, save
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal


class SurfSaveDraft(io.ComfyNode):
    """Save a latent with what belongs to it."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfSaveDraft",
            display_name="Surf Save Draft",
            category="SURF",
            description="Saves a draft in the output folder, bit for bit: video and sound, noise "
            "mask, number, seed and settings. Surf Load Draft takes it up, after a restart too.",
            search_aliases=["save latent", "export latent", "keep preview", "surf"],
            inputs=[
                declare(io.Latent.Input, "draft", tooltip="The draft to save, usually the chosen."),
                declare(
                    io.String.Input, "filename_prefix", default="drafts/ComfyUI",
                    tooltip="Beginning of the file's name, below the output folder.",
                ),
            ],
            outputs=[
                declare(
                    io.Latent.Output, "draft",
                    tooltip="The same draft, saved before anything after this node runs.",
                )
            ],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )  # fmt: skip

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, draft, filename_prefix) -> io.NodeOutput:
        """Save; the graph goes along as in files of the host."""
        name, folder = save(draft, filename_prefix, graph_of(getattr(cls, "hidden", None)))
        saved = {"filename": name, "subfolder": folder, "type": "output"}
        return io.NodeOutput(draft, ui={"latents": [saved]})


class SurfLoadDraft(io.ComfyNode):
    """Load what Surf Save Draft saved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfLoadDraft",
            display_name="Surf Load Draft",
            category="SURF",
            description="Loads a draft that Surf Save Draft saved, from the output or the input "
            "folder, to be refined or finished.",
            search_aliases=["load latent", "import latent", "resume", "surf"],
            inputs=[
                declare(
                    io.Combo.Input, "file", options=draft_names(),
                    tooltip="A file of Surf Save Draft. Press R after saving, for the list.",
                )
            ],
            outputs=[
                declare(
                    io.Latent.Output, "draft",
                    tooltip="The draft as it was saved: for Surf Refiner, Surf Drafts or Surf "
                    "Finish Draft.",
                ),
                declare(
                    io.String.Output, "plan",
                    tooltip="What made it: sizes, number, seed, settings, a line for each.",
                ),
            ],
        )  # fmt: skip

    @classmethod
    def validate_inputs(cls, file=ABSENT):
        # Not by its own name: files that are not in the list may be named, too.
        return refusal(cls, {"draft": file}, check_draft_file)

    @classmethod
    def fingerprint_inputs(cls, file):
        return fingerprint(file)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, file) -> io.NodeOutput:
        """Load; nothing is changed in its dtype."""
        return io.NodeOutput(*load(file))
