-- Moves a claimed run on, and sets fields of its record.
-- ARGV: id, epoch, nonce, new state ("" = leave it), legal states to come from (space between), note ("" = none),
--       then field and value in turn; an empty value deletes the field
-- Returns OK | LOST | ENDED | ILLEGAL <state it is in>
local id, epoch, nonce, state, from, note = unpack(ARGV, 1, 6)
local refused = refusal(id, epoch, nonce)
if refused then
  return refused
end
local key = run_key(id)
local current = redis.call('HGET', key, 'state')
if state ~= '' and not string.find(' ' .. from .. ' ', ' ' .. current .. ' ', 1, true) then
  return 'ILLEGAL ' .. current
end
local at = now()
if state ~= '' then
  redis.call('HSET', key, 'state', state)
  if state == 'running' and current ~= 'running' then
    redis.call('HSET', key, 'started_at', stamp(at))
  end
end
set_fields(key, ARGV, 7)
if note ~= '' then
  redis.call('HSET', key, 'note', note)
end
if note ~= '' or (state ~= '' and state ~= current) then
  local is_new = state ~= '' and state ~= current
  local events = not is_new and {} or state == 'running' and {'started', 'running'} or nil
  emit(id, is_new and state or current, note, at, events)
end
return 'OK'
