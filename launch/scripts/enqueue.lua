-- Records runs, gives each its place and rings once a run. Each is all or nothing; one that is refused stops none.
-- ARGV: count, then seven a run: id, spec (JSON), message, priority class, queue, queue config version, schema version
-- Returns one answer a run: OK | SAME | CONFLICT | NOQUEUE | STALE (the queue's config is a newer one); and at the end
-- HEARD if anybody listens to events, which are the caller's to send then, else UNHEARD
local answers = {}
local at = stamp(now())
for i = 0, tonumber(ARGV[1]) - 1 do
  local id, spec, bell, priority, queue, version, schema = unpack(ARGV, 2 + i * 7, 8 + i * 7)
  local key = run_key(id)
  local known = redis.call('HGET', key, 'spec')
  local current = redis.call('HGET', queue_key(queue), 'version')
  local answer = 'OK'
  if known then
    answer = known == spec and 'SAME' or 'CONFLICT'
  elseif redis.call('HEXISTS', P .. 'archive', id) == 1 then
    answer = 'CONFLICT'
  elseif not current then
    answer = 'NOQUEUE'
  elseif current ~= version then
    answer = 'STALE'
  else
    local seq = redis.call('INCR', P .. 'seq')
    local score = string.format('%.0f', tonumber(priority) * 1125899906842624 + seq * 65536)
    redis.call('HSET', key, 'spec', spec, 'state', 'queued', 'queue', queue, 'seq', seq, 'score', score,
      'created_at', at, 'schema', schema)
    redis.call('ZADD', queue_key(queue, 'waiting'), score, id)
    redis.call('LPUSH', 'launch.' .. queue, bell)
    count('enqueued|' .. queue)
  end
  answers[#answers + 1] = answer
end
answers[#answers + 1] = is_heard() and 'HEARD' or 'UNHEARD'
return answers
