-- Records a request that is no valid launch as a run that has failed.
-- ARGV: id, spec (JSON), queue, cause (JSON), the cause's sentence, what its events say
-- Returns OK | SAME
local id, spec, queue, cause, sentence, brief = unpack(ARGV)
local key = run_key(id)
if redis.call('EXISTS', key) == 1 then
  return 'SAME'
end
local at = now()
redis.call('HSET', key, 'spec', spec, 'queue', queue, 'seq', redis.call('INCR', P .. 'seq'), 'created_at', stamp(at), 'brief', brief)
end_run(id, queue, 'failed', cause, at)
emit(id, 'failed', sentence, at)
return 'OK'
