"""The live service around its core: state, engine and catalogue in one object; a log on disk; HTTP, metrics, the page.

Events and questions come in (HTTP, a bus, a log that is replayed), answers go out. HTTP, metrics
and the bus of Redis need the packages of requirements/serve.txt.
"""
