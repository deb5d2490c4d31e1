from data_pipelines.beam.pipeline import main

main()
