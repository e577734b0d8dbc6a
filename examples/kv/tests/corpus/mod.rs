//! What is sent to kv and to Redis, to see whether they answer alike.
//!
//! A script is a list of lines, run in order on one connection after FLUSHALL, once in RESP2 and once in RESP3. A line is a
//! command: words between spaces, quoted where need be (`"a\x00\r\n"`), and `<n*c>` for the character c, n times. A mark before
//! it says how replies are compared, where they may differ:
//!
//! | mark | compared |
//! |---|---|
//! | none | byte by byte |
//! | `~` | an array, set or map: its elements, in any order |
//! | `?` | the kind of reply only (its first byte): the contents are the server's own (INFO, TIME, ids, ...) |
//! | `+` | an integer: give or take 500 (times to live, in milliseconds) |
//! | `h` | byte by byte but for the client's id (HELLO) |
//! | `*` | SCAN, from cursor 0 to its end: the set of all keys returned |
//! | `!` | not at all: sent to prepare what follows |
//!
//! [`RAW`] holds bytes rather than commands; each is sent on a connection of its own, and all that comes back compared.

/// Scripts, by name.
pub(crate) const SCRIPTS: &[(&str, &str)] = &[
    (
        "set and its options",
        r#"
        SET k v
        GET k
        set K v2
        GET K
        GET none
        SET k v NX
        SET new v NX
        SET k v2 XX
        SET none v XX
        SET k v3 GET
        SET nil v GET
        SET k v4 NX GET
        SET k v5 XX GET
        SET gone v XX GET
        EXISTS gone
        SET k v NX XX
        SET k v XX NX
        SET k v nx get
        SET k v EX 100
        TTL k
        SET k v KEEPTTL
        TTL k
        SET k v KEEPTTL EX 5
        SET k v EX 5 KEEPTTL
        SET k v
        TTL k
        SET k v PX 100000
        +PTTL k
        SET k v EXAT 33177117420
        EXPIRETIME k
        SET k v PXAT 33177117420123
        PEXPIRETIME k
        EXPIRETIME k
        SET k v EX 5 PX 5000
        SET k v EX 5 EX 500
        TTL k
        SET k v EX
        SET k v EX abc
        SET k v EX 0
        SET k v EX -1
        SET k v PX 0
        SET k v EXAT 0
        SET k v EX 9223372036854775807
        SET k v PX 9223372036854775807
        SET k v EX 9223372036854775
        SET k v PXAT 9223372036854775807
        PEXPIRETIME k
        +TTL k
        PERSIST k
        SET k v EXAT 9223372036854775807
        SET k v EXAT 1
        GET k
        SET k v PXAT 1
        EXISTS k
        SET k v PERSIST
        SET k v BAD
        SET k v EX 10 BAD
        SET k
        SET
        SET k ""
        GET k
        STRLEN k
        SET "" empty
        GET ""
        SET "bin\x00\r\n\xff" "\x00\x01\r\n\xff"
        GET "bin\x00\r\n\xff"
        GET
        GET a b
        GETSET k new
        GETSET other new
        GETSET k
        SETNX k v
        SETNX fresh v
        SETNX k
        SETEX k 100 v
        TTL k
        SETEX k 0 v
        SETEX k -5 v
        SETEX k x v
        SETEX k 9223372036854775807 v
        SETEX k 10
        PSETEX k 100000 v
        +PTTL k
        PSETEX k 0 v
        PSETEX k abc v
        GETDEL k
        GETDEL k
        GETDEL
        TYPE other
        TYPE none
        TYPE
        "#,
    ),
    (
        "getex",
        r#"
        GETEX none
        GETEX none EX abc
        SET k v
        GETEX k
        TTL k
        GETEX k EX 100
        TTL k
        GETEX k
        TTL k
        GETEX k PERSIST
        TTL k
        GETEX k PX 100000
        +PTTL k
        GETEX k EXAT 33177117420
        EXPIRETIME k
        GETEX k PXAT 33177117420000
        PEXPIRETIME k
        GETEX k EX 0
        GETEX k EX -1
        GETEX k EX abc
        GETEX k EX
        GETEX k EX 10 PX 10
        GETEX k EX 10 PERSIST
        GETEX k PERSIST EX 10
        GETEX k NX
        GETEX k KEEPTTL
        GETEX k GET
        GETEX k EX 9223372036854775807
        GETEX k EXAT 1
        EXISTS k
        GETEX
        "#,
    ),
    (
        "ranges",
        r#"
        SET k "Hello World"
        GETRANGE k 0 4
        GETRANGE k -5 -1
        GETRANGE k 0 -1
        GETRANGE k 5 1
        GETRANGE k -1 -5
        GETRANGE k 100 200
        GETRANGE k -100 3
        GETRANGE k 0 9223372036854775807
        GETRANGE k -9223372036854775808 9223372036854775807
        GETRANGE k -9223372036854775808 -9223372036854775808
        GETRANGE k a 1
        GETRANGE k 0 b
        GETRANGE k 0
        GETRANGE none 0 -1
        SET e ""
        GETRANGE e 0 -1
        SETRANGE k 6 Redis
        GET k
        SETRANGE k 20 tail
        GET k
        SETRANGE none 5 x
        GET none
        SETRANGE empty 5 ""
        EXISTS empty
        SETRANGE k 0 ""
        SETRANGE k -1 x
        SETRANGE k abc x
        SETRANGE k 67108864 x
        SETRANGE k 67108863 ""
        SETRANGE k 9223372036854775807 x
        SETRANGE none2 9223372036854775807 x
        SETRANGE none2 9223372036854775808 x
        SETRANGE k 0
        EXPIRE k 100
        SETRANGE k 0 J
        TTL k
        APPEND k !
        TTL k
        GET k
        APPEND new start
        APPEND new ""
        APPEND new end
        GET new
        APPEND new
        STRLEN new
        STRLEN none3
        STRLEN
        "#,
    ),
    (
        "numbers",
        r#"
        INCR n
        INCR n
        DECR n
        INCRBY n 40
        DECRBY n 20
        GET n
        INCRBY n -100
        DECRBY n -100
        INCRBY n abc
        INCRBY n 1.5
        INCRBY n " 1"
        INCRBY n 01
        INCRBY n +1
        INCRBY n -0
        INCRBY n ""
        INCRBY n
        DECRBY n 9223372036854775808
        DECRBY n -9223372036854775808
        INCRBY n 9223372036854775808
        SET n 9223372036854775807
        INCR n
        INCRBY n 1
        DECRBY n -1
        DECR n
        SET n -9223372036854775808
        DECR n
        INCRBY n -1
        DECRBY n 1
        INCR n
        SET n abc
        INCR n
        SET n " 11"
        INCR n
        SET n "11 "
        INCR n
        SET n 011
        INCR n
        SET n ""
        INCR n
        SET n 1.5
        INCR n
        SET n 5
        EXPIRE n 100
        INCR n
        TTL n
        INCR
        INCR a b
        INCRBYFLOAT f 0.1
        INCRBYFLOAT f 0.2
        INCRBYFLOAT f -0.3
        INCRBYFLOAT f 5.0e3
        INCRBYFLOAT f 1e20
        INCRBYFLOAT f 0.5
        SET f 10.50
        INCRBYFLOAT f 0.1
        INCRBYFLOAT f -5
        SET f 3.0
        INCRBYFLOAT f 1.000000000000000000005
        SET f 512.1
        INCRBYFLOAT f 0
        INCRBYFLOAT f 0.00000000000000001
        INCRBYFLOAT f 1e-18
        SET f 0
        INCRBYFLOAT f -1e-18
        INCRBYFLOAT f -0
        INCRBYFLOAT f 0x1p3
        INCRBYFLOAT f 0x.8
        INCRBYFLOAT f 0X1.8P+1
        INCRBYFLOAT f 1e-4940
        INCRBYFLOAT f abc
        INCRBYFLOAT f ""
        INCRBYFLOAT f " 1"
        INCRBYFLOAT f "1 "
        INCRBYFLOAT f "1\x00"
        INCRBYFLOAT f 0x
        INCRBYFLOAT f .
        INCRBYFLOAT f 1e
        INCRBYFLOAT f 1.2.3
        INCRBYFLOAT f inf
        INCRBYFLOAT f -infinity
        INCRBYFLOAT f nan
        INCRBYFLOAT f 1e5000
        INCRBYFLOAT f 1e-5000
        SET f inf
        INCRBYFLOAT f 1
        INCRBYFLOAT f abc
        SET f abc
        INCRBYFLOAT f 1
        SET f 1.18e4932
        INCRBYFLOAT f 1.18e4932
        INCRBYFLOAT f 0
        SET f 18446744073709551615
        INCRBYFLOAT f 1
        INCRBYFLOAT f 1
        SET f 9007199254740993
        INCRBYFLOAT f 0.25
        SET f 1
        EXPIRE f 100
        INCRBYFLOAT f 1.5
        TTL f
        INCRBYFLOAT f
        "#,
    ),
    (
        "many keys",
        r#"
        MSET a 1 b 2 c 3 d 4 e 5 f 6 g 7 h 8
        MGET a b none c h a
        MGET
        MSET
        MSET a
        MSET a 1 b
        MSET a 1 a 2
        GET a
        MSETNX a 1 z 2
        EXISTS z
        MSETNX x 1 y 2 z 3
        MGET x y z
        MSETNX x 1 y
        MSETNX
        MSETNX p 1 p 2
        GET p
        EXISTS a a none b
        EXISTS
        TOUCH a b none
        TOUCH
        DEL a a none
        UNLINK b c d none
        DEL
        UNLINK
        DBSIZE
        DBSIZE x
        EXPIRE e 100
        MSET e 1 f 2
        TTL e
        ~KEYS *
        "#,
    ),
    (
        "expiry",
        r#"
        EXPIRE none 10
        PEXPIRE none 10
        EXPIREAT none 33177117420
        PEXPIREAT none 33177117420000
        TTL none
        PTTL none
        EXPIRETIME none
        PEXPIRETIME none
        PERSIST none
        SET k v
        TTL k
        PTTL k
        EXPIRETIME k
        PEXPIRETIME k
        PERSIST k
        EXPIRE k 100
        TTL k
        +PTTL k
        EXPIRE k 200 NX
        TTL k
        EXPIRE k 200 XX
        TTL k
        EXPIRE k 100 GT
        TTL k
        EXPIRE k 300 GT
        TTL k
        EXPIRE k 400 LT
        EXPIRE k 100 LT
        TTL k
        EXPIRE k 50 XX LT
        TTL k
        EXPIRE k 500 XX GT
        TTL k
        PERSIST k
        EXPIRE k 100 XX
        EXPIRE k 100 GT
        EXPIRE k 100 LT
        PERSIST k
        EXPIRE k 100 nx
        EXPIRE k 100 NX XX
        EXPIRE k 100 NX GT
        EXPIRE k 100 NX LT
        EXPIRE k 100 GT LT
        EXPIRE k 100 BAD
        EXPIRE k 100 "B\x00D"
        EXPIRE k abc BAD
        EXPIRE k abc
        EXPIRE k 1.5
        EXPIRE k 9223372036854775807
        EXPIRE k -9223372036854775808
        EXPIRE k 9223372036854775
        PEXPIRE k 9223372036854775807
        EXPIREAT k 9223372036854775807
        PEXPIREAT k 9223372036854775807
        PEXPIRETIME k
        EXPIRE none abc
        EXPIRE k
        PEXPIRE k 100000
        +PTTL k
        EXPIREAT k 33177117420
        EXPIRETIME k
        PEXPIREAT k 33177117420500
        PEXPIRETIME k
        EXPIRETIME k
        EXPIRE k 0
        EXISTS k
        SET k v
        EXPIRE k -1
        GET k
        SET k v
        PEXPIREAT k 1
        GET k
        SET k v
        PEXPIREAT k -9223372036854775808
        GET k
        SET k v
        EXPIREAT k 1 GT
        EXISTS k
        EXPIREAT k 1 LT
        EXISTS k
        SET k v PX 20
        !DEBUG SLEEP 0.05
        GET k
        EXISTS k
        TTL k
        DBSIZE
        SET k v PX 20
        !DEBUG SLEEP 0.05
        SETNX k v2
        TTL k
        SET k v PX 20
        !DEBUG SLEEP 0.05
        APPEND k x
        TTL k
        SET k v PX 20
        !DEBUG SLEEP 0.05
        RENAME k other
        SET k v PX 20
        SET l v
        !DEBUG SLEEP 0.05
        COPY l k
        MGET k l
        ~KEYS *
        TTL
        PTTL
        EXPIRETIME
        PEXPIRETIME
        PERSIST
        PEXPIRE k
        EXPIREAT k
        PEXPIREAT k
        "#,
    ),
    (
        "rename and copy",
        r#"
        RENAME a b
        RENAMENX a b
        RENAME a a
        RENAMENX a a
        SET a 1 EX 100
        RENAME a b
        GET a
        GET b
        TTL b
        SET a 2
        RENAMENX a b
        RENAME b b
        RENAMENX b b
        RENAME a b
        GET b
        TTL b
        RENAMENX b c
        GET c
        RENAME a
        RENAMENX a
        COPY none x
        COPY c d
        GET d
        COPY c d
        COPY c d REPLACE
        COPY c c
        COPY none none
        COPY c c DB 1
        COPY c c DB 0
        COPY c d DB 1
        COPY c d DB 1
        COPY c d DB 1 REPLACE
        COPY c d DB 16
        COPY c d DB -1
        COPY c d DB abc
        COPY c d DB 99999999999
        COPY c d DB
        COPY c d BAD
        COPY c
        SELECT 1
        GET d
        GET c
        ~KEYS *
        EXPIRE d 100
        COPY d c DB 0 REPLACE
        SELECT 0
        GET c
        TTL c
        SET l1 v
        RENAME l1 l2
        RENAME l2 l3
        RENAME l3 l4
        RENAME l4 l5
        RENAME l5 l6
        GET l6
        COPY l6 l7
        COPY l7 l8
        COPY l8 l9
        MGET l6 l7 l8 l9
        "#,
    ),
    (
        "databases",
        r#"
        SELECT 0
        SET k zero
        SELECT 15
        GET k
        SET k fifteen
        SELECT 16
        SELECT -1
        SELECT abc
        SELECT ""
        SELECT 99999999999
        SELECT 99999999999999999999
        SELECT
        SELECT 1 2
        GET k
        DBSIZE
        FLUSHDB
        DBSIZE
        SELECT 0
        DBSIZE
        FLUSHDB ASYNC
        DBSIZE
        SET k v
        FLUSHDB sync
        FLUSHALL
        FLUSHALL ASYNC
        FLUSHALL SYNC
        FLUSHALL BAD
        FLUSHALL SYNC ASYNC
        FLUSHDB BAD
        RANDOMKEY
        RANDOMKEY x
        SET only v
        RANDOMKEY
        SELECT 3
        RANDOMKEY
        RESET
        RANDOMKEY
        "#,
    ),
    (
        "keys and scan",
        r#"
        ~KEYS *
        *SCAN
        MSET one 1 two 2 three 3 four 4 five 5 six 6 seven 7 eight 8 nine 9 ten 10
        MSET k[1] a k\ b "k*" c "k?" d kk e K f "" g
        ~KEYS *
        ~KEYS t*
        ~KEYS *e
        ~KEYS t?o
        ~KEYS [ft]*
        ~KEYS [^ft]*
        ~KEYS [a-f]*
        ~KEYS [f-a]*
        ~KEYS k\*
        ~KEYS k\?
        ~KEYS k\[*
        ~KEYS "k\\\\"
        ~KEYS k[
        ~KEYS [
        ~KEYS [^
        ~KEYS ""
        ~KEYS **
        ~KEYS nothing*
        KEYS
        KEYS a b
        *SCAN
        *SCAN COUNT 1
        *SCAN COUNT 1000
        *SCAN MATCH t*
        *SCAN MATCH t* COUNT 3
        *SCAN TYPE string
        *SCAN TYPE STRING
        *SCAN TYPE hash
        *SCAN TYPE nonsense
        *SCAN MATCH "" COUNT 2
        *SCAN MATCH a* MATCH t*
        SCAN
        SCAN abc
        SCAN " 0"
        SCAN "0 "
        SCAN 99999999999999999999
        ?SCAN -1
        ?SCAN ""
        ?SCAN 18446744073709551615
        SCAN 0 COUNT 0
        SCAN 0 COUNT -1
        SCAN 0 COUNT abc
        SCAN 0 COUNT
        SCAN 0 MATCH
        SCAN 0 BAD x
        SCAN abc COUNT abc
        EXPIRE one 0
        SET two v PX 1
        !DEBUG SLEEP 0.02
        ~KEYS *
        *SCAN
        "#,
    ),
    (
        "connection",
        r#"
        PING
        PING hello
        PING "\x00\r\n"
        PING a b
        ping
        ECHO hello
        ECHO
        ECHO a b
        hHELLO
        HELLO abc
        HELLO 1
        HELLO 4
        HELLO 9223372036854775808
        HELLO 3 AUTH a b
        HELLO 3 AUTH a
        HELLO 3 AUTH bad x BADOPT
        HELLO 3 AUTH bad x SETNAME unset
        CLIENT GETNAME
        HELLO 3 SETNAME set AUTH bad x
        CLIENT GETNAME
        RESET
        HELLO 3 BAD
        HELLO 3 SETNAME
        HELLO 3 SETNAME "a b"
        hHELLO 3 SETNAME me
        CLIENT GETNAME
        GET none
        CONFIG GET nonsense
        hHELLO 2 AUTH default anything SETNAME you
        CLIENT GETNAME
        GET none
        hHELLO 3
        GET none
        MGET none
        SET none v XX
        CLIENT SETNAME ""
        CLIENT GETNAME
        CLIENT SETNAME "a b"
        CLIENT SETNAME "a\nb"
        CLIENT SETNAME
        CLIENT SETNAME good-name
        CLIENT GETNAME
        HELLO 2 SETNAME halfway BAD
        CLIENT GETNAME
        SELECT 5
        RESET
        CLIENT GETNAME
        GET none
        RESET x
        ?CLIENT ID
        CLIENT ID x
        ?CLIENT INFO
        CLIENT INFO x
        ?CLIENT LIST
        ?CLIENT LIST TYPE normal
        CLIENT LIST TYPE pubsub
        CLIENT LIST TYPE master
        CLIENT LIST TYPE replica
        CLIENT LIST TYPE bad
        CLIENT LIST ID
        CLIENT LIST ID abc
        CLIENT LIST ID 987654321
        CLIENT LIST ID 1 abc
        CLIENT LIST BAD
        CLIENT LIST BAD x
        CLIENT KILL 1.2.3.4:5
        CLIENT KILL ID abc
        CLIENT KILL ID 0
        CLIENT KILL ID -1
        CLIENT KILL ID 987654321
        CLIENT KILL ADDR 1.2.3.4:5
        CLIENT KILL LADDR 1.2.3.4:5
        CLIENT KILL TYPE bad
        CLIENT KILL TYPE pubsub
        CLIENT KILL TYPE master SKIPME no
        CLIENT KILL USER nobody
        CLIENT KILL USER default ID 987654321
        CLIENT KILL SKIPME maybe
        CLIENT KILL SKIPME yes ID 987654321
        CLIENT KILL BAD x
        CLIENT KILL ID 1 ADDR
        CLIENT KILL
        CLIENT
        CLIENT BAD
        CLIENT "b\r\nad"
        CLIENT GETNAME x
        ?CLIENT HELP
        CLIENT HELP x
        "#,
    ),
    (
        "server",
        r#"
        ?TIME
        TIME x
        ?INFO
        ?INFO server
        ?INFO server clients
        INFO nonsense
        INFO nonsense other
        INFO keyspace
        SET k v
        SET l v EX 100
        ?INFO keyspace
        INFO cluster
        CONFIG
        CONFIG BAD
        CONFIG GET
        ~CONFIG GET maxmemory-policy
        ~CONFIG GET MAXMEMORY-POLICY
        ~CONFIG GET databases proto-max-bulk-len
        CONFIG GET nonsense
        CONFIG GET none sense
        CONFIG RESETSTAT
        CONFIG RESETSTAT x
        ?CONFIG HELP
        DEBUG
        DEBUG BAD
        DEBUG SLEEP
        DEBUG SLEEP 0
        DEBUG SLEEP abc
        DEBUG SLEEP 0.01
        DEBUG SLEEP 0.01s
        DEBUG SLEEP 0 0
        ?COMMAND
        ?COMMAND COUNT
        COMMAND COUNT x
        COMMAND BAD
        ?COMMAND LIST
        COMMAND LIST BAD
        COMMAND LIST FILTERBY
        COMMAND LIST FILTERBY PATTERN
        COMMAND LIST FILTERBY BAD x
        COMMAND LIST FILTERBY PATTERN a b
        COMMAND LIST BAD PATTERN a
        COMMAND LIST FILTERBY PATTERN GET
        COMMAND LIST FILTERBY pattern PEXPIRETIME
        ~COMMAND LIST FILTERBY PATTERN pexpire*
        COMMAND LIST FILTERBY PATTERN "client|kill"
        COMMAND LIST FILTERBY MODULE nonsense
        COMMAND LIST FILTERBY ACLCAT nonsense
        ?COMMAND LIST FILTERBY ACLCAT string
        COMMAND INFO nonsense
        COMMAND INFO ping echo hello select quit reset info get set setnx setex psetex getex getdel getset getrange setrange
        COMMAND INFO del unlink exists touch incr decr incrby decrby incrbyfloat append strlen mget mset msetnx
        COMMAND INFO expire pexpire expireat pexpireat expiretime pexpiretime ttl pttl persist type rename renamenx copy
        COMMAND INFO keys scan randomkey dbsize flushall flushdb time debug nonsense GET
        COMMAND INFO "config|get" "config|resetstat" "client|id" "client|setname" "client|getname" "client|info"
        COMMAND INFO "client|list" "client|kill" "command|count" "command|docs" "command|info" "command|list" "client|bad"
        ?COMMAND INFO client config command
        COMMAND DOCS nonsense
        ~COMMAND DOCS ping echo hello select quit reset info get set setnx setex psetex getex getdel getset getrange
        ~COMMAND DOCS setrange del unlink exists touch incr decr incrby decrby incrbyfloat append strlen mget mset msetnx
        ~COMMAND DOCS expire pexpire expireat pexpireat expiretime pexpiretime ttl pttl persist type rename renamenx
        ~COMMAND DOCS copy keys scan randomkey dbsize flushall flushdb time debug
        ~COMMAND DOCS "config|get" "config|resetstat" "client|id" "client|setname" "client|getname" "client|info"
        ~COMMAND DOCS "client|list" "client|kill" "command|count" "command|docs" "command|info" "command|list"
        ?COMMAND DOCS client config command
        ?COMMAND DOCS
        ?COMMAND HELP
        NONSENSE
        NONSENSE a b c
        nonsense "with spaces" "with\x00nul" "with\r\nlines"
        NONSENSE <300*a>
        NONSENSE <100*a> <100*b> <100*c>
        <300*n> a
        "" a
        "\r\n"
        GE
        GETT
        "GET\x00" k
        "G T" k
        "#,
    ),
    (
        "large values",
        r#"
        SET k <1000000*x>
        GET k
        STRLEN k
        GETRANGE k 999990 -1
        APPEND k <1000000*y>
        GETRANGE k 999995 1000005
        SETRANGE k 3000000 z
        STRLEN k
        COPY k l
        RENAME l m
        STRLEN m
        SET k <100*s>
        GET k
        SET <100000*k> v
        GET <100000*k>
        DEL <100000*k>
        SET big <67108864*b>
        STRLEN big
        APPEND big x
        SETRANGE big 67108863 y
        SETRANGE big 67108863 yz
        GETRANGE big 67108860 -1
        DEL big
        MSET a <70000*a> b <70000*b>
        MGET a b
        "#,
    ),
];

/// Bytes sent as they are, then the end of the stream.
pub(crate) const RAW: &[&str] = &[
    r"*1\r\n$4\r\nPING\r\n",
    r"*1\r\n$4\r\nPINGxx*1\r\n$4\r\nPING\r\n",
    r"PING\r\nPING\nping\r\n",
    r"\r\n\r\n  \r\nPING\r\n",
    r"*0\r\n*-1\r\n*-5\r\nPING\r\n",
    r"*x\r\n",
    r"*\r\n",
    r"*1 \r\n",
    r"*+1\r\n",
    r"*01\r\n",
    r"*2147483648\r\n",
    r"*99999999999999999999\r\n",
    r"*2147483647\r\n$4\r\nPING\r\n",
    r"*1\r\n$x\r\n",
    r"*1\r\n$\r\n",
    r"*1\r\n$-1\r\n",
    r"*1\r\n$04\r\nPING\r\n",
    r"*1\r\n$67108865\r\n",
    r"*1\r\n$99999999999999999999\r\n",
    r"*1\r\nx4\r\nPING\r\n",
    r"*1\r\n\r\n",
    r"*1\r\n\n\r\n",
    r"*1\r\n:4\r\n",
    r"*1\rxPING\r\n",
    r"*1\r\n$4\rxPING\r\n",
    r"*2\r\n$4\r\nPING\r\n*1\r\n$4\r\nPING\r\n",
    r"*1\r\n\x00\r\n",
    r"*1\r\n\x004\r\nPING\r\n",
    r"*1\r\n$4\x00\r\nPING\r\n",
    r"PING\x00\r\nPING\r\n",
    r"*1\r\n$4\r\nPING\r\n*x\r\n*1\r\n$4\r\nPING\r\n",
    r"*1\r\n$4\r\nQUIT\r\n*1\r\n$4\r\nPING\r\n",
    r"QUIT\r\nPING\r\n",
    r#"PING "a\r\n"#,
    r#"PING "a"b\r\n"#,
    r"PING 'a\r\n",
    r"PING 'a'b\r\n",
    r#"PING "\x41\n\t\q\"\\"\r\n"#,
    r#"PING "\\x41\\n\\t\\a\\b\\q\\xzz"\r\n"#,
    r"PING 'it\\'s'\r\n",
    r#"PING """#,
    r#"PING ""\r\n"#,
    r#"PING a"b c"\r\n"#,
    r"PING \x0b\x0c\t a\r\n",
    r"PING a\x0bb\r\nPING a\x0cb\r\nPIN\x0b\r\n",
    r"GET a b\r\nGET\r\n",
    r"$4\r\nPING\r\n",
    r"-ERR\r\n",
    r"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    r"<70000*x>",
    r"*<70000*1>",
    r"*1\r\n$<70000*1>",
    r"PING <60000*x>\r\n",
    r"\xff\xfe\x00\x01",
    r"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$5\r\nab",
    r"*2\r\n$4\r\nECHO\r\n$0\r\n\r\n*2\r\n$4\r\nECHO\r\n$3\r\n\r\n\x00\r\n",
];

/// The bytes that escapes and `<n*c>` stand for.
pub(crate) fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        if let Some((count, byte, tail)) = repeated(rest) {
            out.resize(out.len() + count, byte);
            rest = tail;
            continue;
        }
        let hex = |digits: &[u8]| u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok();
        let (byte, tail) = match rest {
            [b'\\', b'x', high, low, tail @ ..] => {
                (hex(&[*high, *low]).expect("two hexadecimal digits"), tail)
            }
            [b'\\', b'r', tail @ ..] => (b'\r', tail),
            [b'\\', b'n', tail @ ..] => (b'\n', tail),
            [b'\\', b't', tail @ ..] => (b'\t', tail),
            [b'\\', b'\\', tail @ ..] => (b'\\', tail),
            _ => (*byte, tail),
        };
        out.push(byte);
        rest = tail;
    }
    out
}

fn repeated(text: &[u8]) -> Option<(usize, u8, &[u8])> {
    let text = text.strip_prefix(b"<")?;
    let star = text.iter().position(|&byte| byte == b'*')?;
    let count = str::from_utf8(&text[..star]).ok()?.parse().ok()?;
    match &text[star + 1..] {
        [byte, b'>', tail @ ..] => Some((count, *byte, tail)),
        _ => None,
    }
}

/// Splits a line into the words of a command.
pub(crate) fn words(line: &str) -> Vec<Vec<u8>> {
    let mut words = Vec::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (word, tail) = match rest.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"').expect("quotes pair"),
            None => rest.split_once(' ').unwrap_or((rest, "")),
        };
        words.push(unescape(word));
        rest = tail.trim_start();
    }
    words
}
