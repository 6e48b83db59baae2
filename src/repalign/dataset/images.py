"""Images: files that Pillow knows, and the pictures of the toy world."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from repalign.dataset.columns import Arrays, Blob, Distortion, Draw, Files, Wanted, first, ring, share, stream
from repalign.errors import is_of

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL.Image import Image

    from repalign.dataset.texts import Vocabulary

PATCH = 16  # pixels along the edge of a patch
GREY = 128
COLOURLESS = 4  # the row of a mock run whose images have no colour
LARGEST = 2.0  # of made-up images of unequal sizes, in sides of the toy world's


def decode_rgb(data: bytes) -> Image:
    """The first frame of an image file as 8-bit RGB, upright.

    An EXIF orientation is applied, since whoever wrote the caption saw the picture upright.
    Transparent pixels are laid over white: the colour stored under them is arbitrary.
    16-bit greyscale is scaled to 8 bits; other deep formats have no defined white and are refused.

    Raises ValueError for a mode without a meaning in RGB, and what Pillow raises for broken files.
    """
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(data)) as image:
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        return _rgb(image)


def _rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image

    if image.mode.startswith("I;16"):
        return Image.fromarray(np.round(np.asarray(image).astype(np.float64) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode!r} have no defined range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def is_picture(x: object) -> bool:
    """Whether it is a picture in memory, of Pillow or as an array of bytes (height, width, 3)."""
    import numpy as np

    return is_of(x, "PIL", "Image") or (isinstance(x, np.ndarray) and x.dtype == np.uint8 and x.ndim == 3 and x.shape[2] == 3)


@dataclass(frozen=True)
class PictureBlob(Blob):
    """A picture of Pillow in memory; its file is a PPM, which is the size and the pixels in RGB."""

    picture: Any = field(default=None, repr=False)

    def read(self) -> bytes:
        from PIL import ImageOps

        file = io.BytesIO()
        _rgb(ImageOps.exif_transpose(self.picture)).save(file, "PPM")
        return file.getvalue()


# --- images: (height, width, 3) of uint8 -> the same -------------------------------------------------


def _noise(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:
    """(1 - a) x + a u with u uniform on the integers 0 to 255, drawn for every pixel and channel."""
    import numpy as np

    u = draw(math.ceil(pixels.size / 8)).astype("<u8").view(np.uint8)[: pixels.size]
    return _mix(pixels, u.reshape(pixels.shape), amount)


def _blur(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:  # noqa: ARG001
    """Gaussian blur with a standard deviation of a times a quarter of the shorter side (Pillow's three box filters)."""
    import numpy as np
    from PIL import Image, ImageFilter

    blurred = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(amount * min(pixels.shape[:2]) / 4))
    return np.asarray(blurred)


def _grey(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:  # noqa: ARG001
    """(1 - a) x + a y with the luma y = .299 R + .587 G + .114 B (Rec. 601)."""
    import numpy as np
    from PIL import Image

    return _mix(pixels, np.asarray(Image.fromarray(pixels).convert("L"))[:, :, None], amount)


def _patches(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:
    """A share a of the whole patches change places in a ring; what is left at the right and below stays."""
    edge = _edge(pixels)
    rows, columns = pixels.shape[0] // edge, pixels.shape[1] // edge
    out = pixels.copy()
    for here, there in ring(rows * columns, amount, draw):
        out[_patch(here, columns, edge)] = pixels[_patch(there, columns, edge)]
    return out


def _occlude(pixels: np.ndarray, amount: float, draw: Draw) -> np.ndarray:
    """A share a of the patches, cut ones at the border included, are mid-grey."""
    edge = _edge(pixels)
    rows, columns = (math.ceil(size / edge) for size in pixels.shape[:2])
    out = pixels.copy()
    for patch in first(rows * columns, share(rows * columns, amount), draw):
        out[_patch(patch, columns, edge)] = GREY
    return out


def _mix(x: np.ndarray, y: np.ndarray, amount: float) -> np.ndarray:
    import numpy as np

    return np.rint((1 - amount) * x + amount * y).astype(np.uint8)


def _edge(pixels: np.ndarray) -> int:
    """The edge of a patch in pixels: 16, or half the shorter side of an image that is smaller than 32."""
    return min(PATCH, max(1, min(pixels.shape[:2]) // 2))


def _patch(index: int, columns: int, edge: int) -> tuple[slice, slice]:
    row, column = divmod(index, columns)
    return slice(row * edge, (row + 1) * edge), slice(column * edge, (column + 1) * edge)


DISTORTIONS = {"noise": _noise, "blur": _blur, "patches": _patches, "grey": _grey, "occlude": _occlude}


# --- the kind ------------------------------------------------------------------------------------


class Images(Files):
    """Images as files: pixels, in RGB and upright."""

    kind: ClassVar[str] = "image"
    plural: ClassVar[str] = "images"
    suffixes = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
    feature = "Image"
    distortions: ClassVar[Mapping[str, Any]] = DISTORTIONS
    decode = staticmethod(decode_rgb)

    @classmethod
    def cell(cls, values: Sequence[Any], names: Sequence[str], row: int, where: str, folder: Path) -> Blob | None:
        if is_picture(given := values[0]):
            from PIL import Image

            return PictureBlob("", f"{cls.kind} in memory", picture=given if is_of(given, "PIL") else Image.fromarray(given))
        return super().cell(values, names, row, where, folder)

    @classmethod
    def verify(cls, data: bytes) -> None:
        from PIL import Image

        try:
            with Image.open(io.BytesIO(data)) as image:
                image.verify()  # checksums, which decoding ignores
            decode_rgb(data)
        except (SyntaxError, struct.error, Image.DecompressionBombError) as error:
            raise ValueError(str(error)) from error
        except Image.UnidentifiedImageError as error:  # its message holds the address of a buffer, of no use to anybody
            raise ValueError("not an image format that Pillow knows") from error

    @classmethod
    def distort(cls, stimulus: Image, how: Distortion, vocabulary: Vocabulary | None, *key: str) -> Image:  # noqa: ARG003
        """An image, at the size at which it is stored."""
        import numpy as np
        from PIL import Image

        return Image.fromarray(DISTORTIONS[how.kind](np.asarray(stimulus), how.amount, stream(how.seed, *key)))

    @classmethod
    def made_up(cls, wanted: Wanted) -> list[str]:
        """Image files, by their names in the folder: PNG and, every third, JPEG."""
        import numpy as np
        from PIL import Image

        from repalign.toyworld import render, world

        picture, noise = (world.stream(wanted.seed, f"stand-in {what} {wanted.column}") for what in ("picture", "pixels"))
        pixels = render.draw(wanted.scenes, picture, noise)
        sizes = np.full((len(pixels), 2), render.SIDE)
        if wanted.unequal:
            rng = world.stream(wanted.seed, f"stand-in sizes {wanted.column}")
            sizes = rng.integers(render.SIDE // 2, round(LARGEST * render.SIDE) + 1, sizes.shape)
        name = f"images-{len(list(wanted.folder.iterdir()))}"  # a column's own name need not be one that a folder can have
        (wanted.folder / name).mkdir()
        out = []
        for i, (array, (width, height)) in enumerate(zip(pixels, sizes.tolist(), strict=True)):
            image = Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)
            image = image.convert("L") if i == COLOURLESS else image
            out.append(f"{name}/{i:05d}.{'jpg' if i % 3 == 2 else 'png'}")
            image.save(wanted.folder / out[-1], quality=95)
        return out


class Pixels(Arrays):
    """Images as one uint8 array of shape (n, height, width, 3). The digest covers the pixels."""

    kind: ClassVar[str] = Images.kind

    def read(self, row: int) -> Image:
        from PIL import Image

        return Image.fromarray(self.array[row])
