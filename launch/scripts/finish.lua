-- Ends a claimed run. Saying it twice with the same claim is fine: the answer to the first may have been lost.
-- ARGV: id, epoch, nonce, final state, cause (JSON), the cause's sentence, digest of the full log ("" = none)
-- Returns OK | LOST
local id, epoch, nonce, state, cause, sentence, log_archive = unpack(ARGV)
local refused = refusal(id, epoch, nonce)
if refused then
  return refused == 'ENDED' and 'OK' or refused
end
local key = run_key(id)
local queue = redis.call('HGET', key, 'queue')
local at = now()
if log_archive ~= '' then
  redis.call('HSET', key, 'log_archive', log_archive)
end
end_run(id, queue, state, cause, at)
emit(id, state, sentence, at)
wake('queue ' .. queue)
return 'OK'
