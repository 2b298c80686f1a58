"""POP, the Prompt-Orchestration Pipeline: a filesystem-queue daemon for chains of LLM tasks."""

__version__ = "0.1.0"
