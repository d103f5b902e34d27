-- Changes a queued run's launch.
-- ARGV: id, its launch as it was read (JSON), its launch as it shall be (JSON), its new priority class
-- Returns OK | GONE | NOTQUEUED <state> | CHANGED (somebody else was faster)
local CLASS = 1125899906842624
local id, before, after, class = unpack(ARGV)
local key = run_key(id)
local r = redis.call('HMGET', key, 'state', 'spec', 'queue', 'score')
if not r[1] then
  return 'GONE'
end
if r[1] ~= 'queued' then
  return 'NOTQUEUED ' .. r[1]
end
if r[2] ~= before then
  return 'CHANGED'
end
local place = tonumber(r[4]) % CLASS
local score = string.format('%.0f', tonumber(class) * CLASS + place)
redis.call('HSET', key, 'spec', after, 'score', score)
for _, set in ipairs({'waiting', 'held'}) do
  if redis.call('ZSCORE', queue_key(r[3], set), id) then
    redis.call('ZADD', queue_key(r[3], set), score, id)
  end
end
return 'OK'
