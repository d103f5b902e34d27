-- Keys: job:<name>  hash  v<n> (JSON of a JobVersion), next (the number of versions), latest (a number),
--                         alias:<alias> (a number), content:<sha256 of what the job is> (a number),
--                         types:v<n> (JSON of a JobTypes, from the version's first finished run)
--       jobs        set   the names of all jobs
-- ARGV: name, job (JSON), sha256 of what it is, then aliases
-- Returns {version (JSON), 1 if it is new}. Repeated, it finds what the first made.
local key = P .. 'job:' .. ARGV[1]
local content = 'content:' .. ARGV[3]
local version = redis.call('HGET', key, content)
local is_new = 0
if not version then
  is_new = 1
  version = redis.call('HINCRBY', key, 'next', 1) - 1
  -- Written by hand: Lua would turn the job's empty lists into mappings.
  redis.call('HSET', key, content, version, 'v' .. version, string.format(
    '{"name":%s,"version":%d,"job":%s,"created_at":%s}', cjson.encode(ARGV[1]), version, ARGV[2], stamp(now())))
  redis.call('SADD', P .. 'jobs', ARGV[1])
end
redis.call('HSET', key, 'latest', version)
for i = 4, #ARGV do
  redis.call('HSET', key, 'alias:' .. ARGV[i], version)
end
return {redis.call('HGET', key, 'v' .. version), is_new}
