"""Put the switch round guiders of other nodes: once, or at several sizes."""

from comfy_api.latest import io

from .after_switch_inputs import after_switch_inputs, lock_input
from .host.node import ABSENT, checks_inputs, declare, names_errors, refusal
from .host.preview import (
    LADDER,
    Ladder,
    Pictures,
    Switch,
    check_low_sides,
    parse_ladder,
    reshift_any,
    take,
)
from .preview_inputs import (
    SEARCH_WORDS,
    guider_output,
    low_cond_inputs,
    model_low_input,
    optional_cfg_input,
    picture_inputs,
    policy_inputs,
    scale_inputs,
    side_inputs,
    steps_low_input,
    switch_step_input,
)

CATEGORY = "SURF"


def guider_input() -> io.Input:
    """Declare the guider that is run in legs."""
    return declare(
        io.Guider.Input,
        "guider",
        tooltip="The guider to run before and after the switch: Basic, CFG, Dual CFG, Dual Model, "
        "LTXV Dual CFG, or of another pack. It stays as it is.",
    )


class SurfReshiftAnyGuider(io.ComfyNode):
    """Put the switch of resolution around a guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfReshiftAnyGuider",
            display_name="Surf Reshift Any Guider",
            category=CATEGORY,
            description="Puts the switch of resolution around any guider: the first steps at the "
            "size of the latent, the rest at a lower one.",
            search_aliases=SEARCH_WORDS,
            inputs=[
                guider_input(),
                switch_step_input(),
                *scale_inputs("low_", "low_resolution", "the low resolution"),
                steps_low_input("the rest of the sigmas"),
                model_low_input(),
                *low_cond_inputs("positive", "middle", "negative"),
                optional_cfg_input(
                    "cfg_low",
                    "Guidance after the switch, for guiders with one scale. 0: the guider's own.",
                ),
                *picture_inputs(),
                *side_inputs("low_", optional=True),
                *policy_inputs(),
                *after_switch_inputs(),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def validate_inputs(cls, low_resolution=ABSENT, low_width=ABSENT, low_height=ABSENT):
        given = {"low_resolution": low_resolution, "low_width": low_width}
        given |= {"low_height": low_height}
        return refusal(cls, given, check_low_sides)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, guider, **given) -> io.NodeOutput:
        """Build the guider; nothing is sampled here."""
        plan, pictures = take(Switch, given), take(Pictures, given)
        return io.NodeOutput(reshift_any(guider, plan, pictures=pictures, **given))


class SurfReshiftLadder(io.ComfyNode):
    """Put several switches of resolution around a guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return declare(
            io.Schema,
            node_id="SurfReshiftLadder",
            display_name="Surf Reshift Ladder",
            category=CATEGORY,
            description="Puts several switches of resolution around any guider, for instance to "
            "three quarters and then to half of the sides. Advanced.",
            search_aliases=SEARCH_WORDS,
            is_experimental=True,
            inputs=[
                guider_input(),
                declare(
                    io.String.Input,
                    "sizes",
                    default=LADDER,
                    tooltip="Steps before a size, a colon, its factor of the first size; then the "
                    "next, smaller one.",
                ),
                *policy_inputs(),
                lock_input(),
            ],
            outputs=[guider_output()],
        )

    @classmethod
    def validate_inputs(cls, sizes=ABSENT):
        return refusal(cls, {"sizes": sizes}, parse_ladder)

    @classmethod
    @names_errors
    @checks_inputs
    def execute(cls, guider, sizes, **policies) -> io.NodeOutput:
        """Build the guider; nothing is sampled here."""
        parse_ladder(sizes)
        return io.NodeOutput(reshift_any(guider, Ladder(sizes_text=sizes, **policies)))
