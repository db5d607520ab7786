"""Check the sound of a video, fit it to the frames, and encode it as AAC.

Dims: B batch, C channels, N samples.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from numbers import Real
from typing import Any

from torch import Tensor

from ..finite import check_finite
from ..node import NodeLog

log = NodeLog(__name__)

LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "quad", 5: "5.0", 6: "5.1", 8: "7.1"}
"""Channels -> the usual layout of so many, in FFmpeg's order, in which the host reads files."""
RATES = (
    7350, 8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000,
)  # fmt: skip
"""Samples a second that AAC has (ISO/IEC 14496-3)."""
HIGHEST_RATE = 10**6
CAUSES = "see the node that made the sound"


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """Sound of one video."""

    wave: Tensor
    """[C, N], finite."""
    rate: int
    """Samples a second."""

    @property
    def seconds(self) -> float:
        return self.wave.shape[-1] / self.rate

    def cut(self, seconds: Fraction) -> "Sound":
        """Keep the start, rounded up to a sample as the host's Save Video does."""
        return replace(self, wave=self.wave[:, : ceil(seconds * self.rate)])

    def beside(self, seconds: Fraction, frame: Fraction) -> str:
        """Say what is lost or missing beside the frames; "" for less than one of them."""
        over = self.seconds - float(seconds)
        if abs(over) < float(frame):
            return ""
        lengths = f"{self.seconds:.2f} s of sound for {float(seconds):.2f} s of frames"
        return f"{lengths}, {'cut' if over > 0 else 'silent at the end'}"


def sound_of(audio: dict | None) -> Sound | None:
    """Check an AUDIO of the host; of several, the first is taken, and the log says so.

    Raises:
        ValueError: no AUDIO, channels that AAC has no layout for, or sound that is not finite.
    """
    if audio is None:
        return None
    known = audio if isinstance(audio, Mapping) else {}
    waves, rate = known.get("waveform"), known.get("sample_rate")
    shaped = isinstance(waves, Tensor) and waves.ndim == 3 and min(waves.shape) > 0
    shaped = shaped and waves.is_floating_point()
    if not shaped or not _is_rate(rate):
        shape = tuple(waves.shape) if isinstance(waves, Tensor) else type(waves).__name__
        raise ValueError(
            "expected sound [B, channels, samples] and a sample_rate of 1 to "
            f"{HIGHEST_RATE} a second, got {shape} at {rate!r:.99}; connect VAE Decode Audio, Load "
            "Audio or the audio of Get Video Components."
        )
    if waves.shape[1] not in LAYOUTS:
        raise ValueError(
            f"expected sound of {', '.join(map(str, LAYOUTS))} channels, which AAC has layouts "
            f"for, got {waves.shape[1]}; mix it down first."
        )
    check_finite(waves[0], "the sound", CAUSES)
    if len(waves) > 1:
        log.warning("sound of %d videos; the first is taken.", len(waves))
    return Sound(wave=waves[0], rate=int(rate))


def _is_rate(rate: Any) -> bool:
    number = isinstance(rate, Real) and not isinstance(rate, bool)
    return number and 1 <= rate <= HIGHEST_RATE and rate == int(rate)


class SoundTrack:
    """An AAC stream of a container."""

    def __init__(self, container: Any, sound: Sound):
        self.sound, self.layout = sound, LAYOUTS[len(sound.wave)]
        rate = next((rate for rate in RATES if rate >= sound.rate), RATES[-1])
        if rate != sound.rate:
            log.info("sound is resampled from %d to %d Hz, which AAC has.", sound.rate, rate)
        self.stream = container.add_stream("aac", rate=rate, layout=self.layout)

    def packets(self) -> Any:
        """Yield the encoded sound."""
        import av

        # Interleaved: PyAV builds no frame of 8 separate channels.
        wave = self.sound.wave.T.reshape(1, -1).float().cpu().contiguous().numpy()
        frame = av.AudioFrame.from_ndarray(wave, format="flt", layout=self.layout)
        frame.sample_rate, frame.pts = self.sound.rate, 0
        frames = [frame]
        if self.stream.rate != self.sound.rate:
            resampler = av.AudioResampler(format="fltp", layout=self.layout, rate=self.stream.rate)
            frames = [*resampler.resample(frame), *resampler.resample(None)]
        for each in (*frames, None):
            yield from self.stream.encode(each)
