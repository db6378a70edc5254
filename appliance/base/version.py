"""The version of Holdfast; the build reads it from here, so nothing asks package metadata for it."""

__version__ = "0.1.0"
