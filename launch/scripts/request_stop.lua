-- Ends a queued run at once, or asks the owner of a claimed one to stop it.
-- ARGV: id, who, grace in seconds, cause (JSON) of a run that was queued, its sentence
-- Returns GONE (no such run) | FINAL | STOPPED (was queued) | ASKED
local id, by, grace, cause, sentence = unpack(ARGV)
local key = run_key(id)
local r = redis.call('HMGET', key, 'state', 'queue', 'stop')
local state, queue = r[1], r[2]
if not state then
  return 'GONE'
end
local at = now()
if state == 'queued' then
  for _, set in ipairs({'waiting', 'held', 'delayed'}) do
    if redis.call('ZREM', queue_key(queue, set), id) == 1 and set == 'waiting' then
      drop_bell(queue)
    end
  end
  end_run(id, queue, 'stopped', cause, at)
  emit(id, 'stopped', sentence, at)
  return 'STOPPED'
end
if not (state == 'building' or state == 'starting' or state == 'running') then
  return 'FINAL'
end
-- Asking again may shorten the grace, never lengthen it.
local before = r[3] and cjson.decode(r[3])
if not before or tonumber(grace) < before.grace_s then
  redis.call('HSET', key, 'stop', cjson.encode({by = before and before.by or by, at = before and before.at or at, grace_s = tonumber(grace)}))
end
if not before then
  emit(id, state, 'stop requested by ' .. by, at, {})
end
wake('stop ' .. id)
return 'ASKED'
