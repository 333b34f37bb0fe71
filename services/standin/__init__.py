"""A stand-in for model servers, beside the road: deterministic, faults on demand, on Ollama's wire and on OpenAI's."""
