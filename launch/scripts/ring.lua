-- Adds the messages a queue is short of.
-- ARGV: queue, then messages to add
-- Returns how many were added
local queue = ARGV[1]
local list = 'launch.' .. queue
local there = 0
for _, step in ipairs({'', '\6\0223', '\6\0226', '\6\0229'}) do
  there = there + redis.call('LLEN', list .. step)
end
local short = redis.call('ZCARD', queue_key(queue, 'waiting')) - there
local added = 0
for i = 2, #ARGV do
  if added >= short then
    break
  end
  redis.call('LPUSH', list, ARGV[i])
  added = added + 1
end
return added
