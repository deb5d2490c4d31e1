import sys

from data_pipelines import beam

try:
    from data_pipelines.beam.pipeline import main
except ModuleNotFoundError as missing:
    print(beam.__doc__)
    sys.exit(f"it needs {missing.name}, which is not installed: pip install apache-beam")

main()
