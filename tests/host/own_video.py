"""Write a user's own video: with stereo sound; or one whose frames change size."""

import av
import numpy as np


def write_own_video(path, pictures, wave, rate, sound_rate):
    """Encode frames [F, H, W, 3] of bytes, F a second by `rate`, with sound [2, N]."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as out:
        video, sound = out.add_stream("h264", rate), out.add_stream("aac", sound_rate)
        video.height, video.width = pictures.shape[1:3]
        video.pix_fmt, sound.layout = "yuv420p", "stereo"
        for picture in pictures:
            out.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        heard = av.AudioFrame.from_ndarray(wave.astype(np.float32), "fltp", "stereo")
        heard.sample_rate = sound_rate
        out.mux(sound.encode(heard))
        for stream in (video, sound):
            out.mux(stream.encode())


def write_changing_video(path, *parts):
    """Encode parts [F, H, W, 3] of bytes of several sizes, 8 frames a second, into one stream."""
    whole, count = b"", 0
    for pictures in parts:
        with av.open(str(path), "w", format="mpegts") as out:
            stream = out.add_stream("h264", 8)
            stream.height, stream.width = pictures.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for picture in pictures:
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, count = count, count + 1
                out.mux(stream.encode(frame))
            out.mux(stream.encode())
        whole += path.read_bytes()
    path.write_bytes(whole)
