"""How a request is read: an HTTP request -> its descriptor -> the input of a decision.

describe          any HTTP request -> EvaluateRequest, for every adapter
headers           what its headers say: key, override, trace ID
body              which reader a body gets;  pieces: a body as it came, in pieces
body_memory       the total of the bodies that are held
body_readers      the processes that read large ones;  reader_process: what each of them does
json_body, form   the readers;  media_type, content_encoding: how the body is written
json_members      every occurrence of the members of a JSON object that matter
stated            what a body says of its model and limits
prompt            how many characters its prompt has
usual_prompt      the same count, quicker, for prompts in the shapes that most clients send
identifiers       end-user identifiers, and their states;  placeholders: values that name no user
end_users         headers that an operator trusts to name the end user
caller_claims     the model and the numbers that a caller states beside the body, or in its place;
                  end_user_claims: the end users
route             what a gateway's operator sets for a route
message_fields    reads fields of protobuf messages that may be unset, and times
evaluate_request  EvaluateRequest -> what the engine decides on, and the answer
"""
