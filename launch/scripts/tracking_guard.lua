-- What every script of the tracking server begins with, behind prelude.lua. More of a run, under "launch:":
--   run:<id>            hash    tracked "1" once wandb.init was called in this attempt, config, summary (JSON)
--                               tokens       sha256 of each key that may write it, separated by spaces
--                               writers      how many histories were begun in it: wandb.init calls and config updates
--                               rows:<n>     rows taken of the history of writer n, refused ones included
--                               history_bytes, file_bytes   what it holds, against the caps
--                               resumed      the attempt whose script asked to go on where an earlier one was
--                               reported_exit               exit code that the SDK reported
--                               declared     what the script declares of its job's inputs (JSON)
--   run:<id>:history    stream  one entry a row: r (JSON)
--   run:<id>:system     stream  likewise, capped: CPU, memory, GPU
-- Every one of them may be repeated: the SDK posts again what it has no answer to.

local function may_write(id, attempt)
  local r = redis.call('HMGET', run_key(id), 'attempt', 'state')
  return r[1] == attempt and (r[2] == 'building' or r[2] == 'starting' or r[2] == 'running')
end
