"""The HTTP server of scripts.serve: OpenAI's API, tasks in JSON, limits."""
