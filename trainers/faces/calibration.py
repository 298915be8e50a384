"""What distances, sizes and likenesses of faces mean; measured on real photographs, see `web/docs/faces.md`."""

from __future__ import annotations

from torch import Tensor

SAME = 0.40  # distance of two different photographs of one person, rather large ones
OTHER = 0.60  # distance from which two faces count as two people's
DUPLICATE = 0.50  # below it, a face that was given to nobody is a second face of its nearest person
JUDGEABLE = 32  # pixels: from here every face of a frame of 832x480 was found, and people were separable
SHARP = 0.085  # detail below which a face is too blurred to judge: as little as a face of 20 pixels has
PASTED = 0.97  # correlation of two upright faces' pixels above which one is a copy of the other's picture
STRANGER = 0.65  # distance to everybody from which a face is a stranger's, not one seen badly
SURE = 0.6  # the detector's confidence from which a face of nobody is taken for a face


def likeness(distance: Tensor) -> Tensor:
    """1 at SAME, 0 at OTHER, linear between and beyond."""
    return (OTHER - distance) / (OTHER - SAME)


def similarity(distance: Tensor) -> Tensor:
    """`likeness` within 0 to 1: 1 for another photograph of the person, 0 for other people.

    It does not rise further towards the reference picture itself, so that copying it gains nothing.
    """
    return likeness(distance).clamp(0, 1)
