-- Moves a waiting run to another place among those of its priority class.
-- ARGV: id, the id of the run to stand before ("" = the first of the class)
-- Returns OK | GONE | NOTWAITING <id> | OTHERCLASS | OTHERQUEUE
local CLASS, GAP = 1125899906842624, 65536
local id, before = unpack(ARGV)
local queue = redis.call('HGET', run_key(id), 'queue')
if not queue then
  return 'GONE'
end
local waiting = queue_key(queue, 'waiting')
local own = redis.call('ZSCORE', waiting, id)
if not own then
  return 'NOTWAITING ' .. id
end
local floor = math.floor(tonumber(own) / CLASS) * CLASS
local whole_class = {string.format('%.0f', floor), string.format('(%.0f', floor + CLASS)}

if before == '' then
  before = redis.call('ZRANGEBYSCORE', waiting, whole_class[1], whole_class[2], 'LIMIT', 0, 1)[1]
elseif redis.call('HGET', run_key(before), 'queue') ~= queue then
  return 'OTHERQUEUE'
end
if before == id then
  return 'OK'
end
local target = redis.call('ZSCORE', waiting, before)
if not target then
  return 'NOTWAITING ' .. before
end
if math.floor(tonumber(target) / CLASS) * CLASS ~= floor then
  return 'OTHERCLASS'
end

local function put(run, score)
  local text = string.format('%.0f', score)
  redis.call('ZADD', waiting, text, run)
  redis.call('HSET', run_key(run), 'score', text)
end

-- The scores between which the run is to stand. It stands out of line meanwhile, so as not to be its own neighbour.
local function gap()
  local above = tonumber(redis.call('ZSCORE', waiting, before))
  local below = redis.call('ZREVRANGEBYSCORE', waiting, string.format('(%.0f', above), whole_class[1],
    'WITHSCORES', 'LIMIT', 0, 1)[2]
  return tonumber(below) or math.max(floor, above - 2 * GAP), above
end

redis.call('ZREM', waiting, id)
local below, above = gap()
if above - below < 2 then
  -- No room: all of the class get places anew, as if enqueued now, which keeps them before whoever comes later.
  for _, run in ipairs(redis.call('ZRANGEBYSCORE', waiting, whole_class[1], whole_class[2])) do
    put(run, floor + redis.call('INCR', P .. 'seq') * GAP)
  end
  below, above = gap()
end
put(id, math.floor((below + above) / 2))
return 'OK'
