"""Results: encoded into the worker's own lane."""

from fastpool._codec import Encoder

class LaneEncoder(Encoder): ...

class ReferenceEncoder(LaneEncoder): ...
