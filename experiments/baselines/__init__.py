"""What a trained model has to beat: heuristics, and the models of the paper's Table 2, each in a file of its own.

A baseline is any object with two methods:

    fit(log, validation)   learns from the training period of a log (experiments.common.log.Log); `validation` are tasks
                           of the validation period, for choosing a step or a number, and may be ignored
    score(task)            float [C], a score for every candidate of a task (data_pipelines.log.tasks.Task), higher is
                           better, −inf for one that is not returned at all

fitting.py trains those that are trained, by the library's one training loop; histories.py gives what was known of a
person when they asked. docs/baselines.md says how to add one.
"""
