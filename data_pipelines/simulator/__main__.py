from data_pipelines.simulator.simulation import main

main()
