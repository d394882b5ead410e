"""What decides on a request descriptor and logs the decision, without gRPC and without a database.

policyd's services decide by it, and so does a gateway that decides in its own process. It needs a
table of settings, a decision log to append to, and nothing else:

    decider                    descriptor -> decision, logged by the time that it is known
    evaluator                  ... the steps that wait for nothing: settings, engine, log entry
    decision_ids               the IDs of decisions
    log_entries                descriptor and decision -> the entry of the log
    policy_failures            policies that could not judge
    access, metrics, traces    how operators watch it
"""

from policyd.decider.decider import MAX_BATCH, MAX_WAIT, Decider

__all__ = ["MAX_BATCH", "MAX_WAIT", "Decider"]
