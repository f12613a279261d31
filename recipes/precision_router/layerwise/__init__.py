"""A router per layer that picks how many bits the weights of that layer are read with.

```
options        the command lines; imports no torch
program        log, device, seed, and errors as exit codes
errors         what a user did not expect, and what to do
tiny_model     a small model where there is no other
nested_linear  one stored weight, read with 2 to 8 bits
nested_model   a causal language model of such weights: making, saving, loading
pooling        which tokens a router looks at, and which are scored then
router         the router
precision_layer  a decoder layer that runs in the precision of its router
causal_lm      the model: train_forward, infer_forward, fixed_forward
objective      the loss
collapse       what the loss weights will end in, said before the training
text_data      texts, and pieces of them
checkpoint     files of a training
preparation    what a training starts from
training       the loop
trained        trained routers, and text that they have not seen
routing_trace  what moetrace recorded, in bits
evaluation     cross-entropy of a way to choose bits
allocation     the best fixed choice of bits per layer
readout        the table
frontier       its picture
```
"""
