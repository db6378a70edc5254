"""The version of Holdfast. The build reads it from here, so no program asks package metadata."""

__version__ = "0.1.0"
