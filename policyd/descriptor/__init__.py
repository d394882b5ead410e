"""How a request is read: an HTTP request -> its descriptor -> the input of a decision.

describe          any HTTP request -> EvaluateRequest, for every adapter
headers           what its headers tell: key, override, trace ID
body              which reader a body gets;  body_memory: the total of those that are held
json_body, form   the readers;  media_type, content_encoding: how the body is written
json_members      every occurrence of the members of a JSON object that matter
stated, prompt    what a body states of model and limits;  how many characters its prompt has
identifiers       end-user identifiers, and their states;  placeholders: values that name no user
evaluate_request  EvaluateRequest -> what the engine decides on, and the answer
"""
