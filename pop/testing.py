"""Tests for your pipelines: any finished run is a regression test (docs/testing.md)."""
