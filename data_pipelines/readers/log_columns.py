"""What the columns and the events of anybody's log are called: the usual names, in a few languages.

Names are compared as `forms.plain` has them, without case, accents and punctuation; words for an id, a unit or a zone
at their end (user_uuid, watch_secs, Joined at (UTC)) are passed over.
"""

from data_pipelines.readers.forms import Column

EVENT_COUNTS = ("like", "comment", "follow", "share")
_OTHER_WORDS = {
    "like": ("upvote", "heart", "点赞"), "comment": ("chat", "message", "danmu", "评论", "弹幕"),
    "follow": ("subscribe", "subscribed", "关注"), "share": ("分享", "转发")}
FIELDS = (
    Column("user", "id", also=(
        "user_id", "uid", "userid", "viewer", "viewer_id", "member_id", "account_id", "audience_id", "visitor_id",
        "customer_id", "watcher", "fan", "user_name", "username", "from_user", "viewer_user", "session_user", "用户",
        "观众", "粉丝", "usuario", "espectador", "utilisateur", "spectateur", "nutzer", "benutzer", "zuschauer")),
    Column("author", "id", also=(
        "author_id", "streamer_id", "streamer", "channel_id", "channel", "anchor_id", "anchor", "broadcaster_id",
        "broadcaster", "host_id", "host", "creator_id", "creator", "performer", "streamer_name", "channel_name",
        "author_name", "anchor_name", "to_streamer", "to_user", "broadcaster_user", "streamer_user", "主播", "频道",
        "作者", "canal", "creador", "chaine", "createur", "kanal")),
    Column("room", "id", False, True, also=(
        "room_id", "live_id", "stream_id", "stream", "live_stream_id", "live", "broadcast_id", "broadcast",
        "livestream_id", "session", "session_id", "show", "直播间", "房间", "直播", "sala", "salle", "raum")),
    Column("start", "time", also=(
        "start_time", "start_timestamp", "started_at", "joined_at", "join_time", "enter_time", "entered_at",
        "enter_timestamp", "entry_time", "time_start", "view_start", "watch_start", "view_start_time",
        "watch_start_time", "view_started_at", "watch_started_at", "event_start", "begin", "begin_time", "start_ts",
        "timestamp", "event_time", "event_timestamp", "time", "ts", "created_at", "datetime", "date_time", "date",
        "live_play_start_timestamp", "开始时间", "进入时间", "时间", "时间戳", "inicio", "debut", "beginn",
        "start_date")),
    Column("stop", "end", False, True, also=(
        "stop_time", "end", "end_time", "end_timestamp", "ended_at", "left_at", "leave_time", "leave_timestamp",
        "exit_time", "exited_at", "time_end", "time_stop", "view_end", "watch_end", "view_end_time", "watch_end_time",
        "view_ended_at", "event_end", "stop_ts", "end_ts", "live_play_end_timestamp", "结束时间", "离开时间", "fin",
        "fim", "ende")),
    Column("watch", "length", False, True, also=(
        "watch_time", "watch_duration", "watched", "watch_length", "duration", "play_duration", "view_duration",
        "view_time", "viewing_time", "time_spent", "time_watched", "dwell_time", "watch_live_time", "length",
        "session_length", "session_duration", "stay_time", "stay_duration", "seconds", "minutes", "观看时长", "时长",
        "停留时长", "duracion", "duree", "dauer", "duracao")),
    Column("event", "category", False, True, also=(
        "event_type", "event_name", "action", "action_type", "事件", "行为")),
    Column("click", "whole", False, True, also=("clicked", "is_click", "is_clicked")),
    *[Column(name, "whole", False, True, also=(
        f"{name}s", f"{name}_cnt", f"{name}_count", f"{name}s_count", f"num_{name}s", f"n_{name}s", f"is_{name}",
        f"has_{name}", f"{name}d", f"{name}ed", f"is_{name}d",
        *(word for word in _OTHER_WORDS[name] if not word.isascii()))) for name in EVENT_COUNTS],
    Column("gift", "real", False, True, also=(
        "gift_value", "gift_price", "gifts", "gift_amount", "gift_cnt", "gift_count", "send_gift_cnt", "is_gift",
        "donation", "donations", "tip", "tips", "bits", "diamonds", "礼物", "礼物价值", "打赏")),
    Column("satisfaction", "real", False, True, also=("satisfaction_score", "rating", "满意度")),
    Column("category", "category", False, True, also=(
        "category_id", "category_name", "game", "game_id", "game_name", "live_content_category", "genre", "topic",
        "分类", "类别")),
    Column("position", "whole", False, True, also=("rank", "slot")),
    Column("room_start", "end", False, True, also=(
        "room_start_time", "room_started_at", "live_start", "stream_start", "live_start_time", "stream_start_time",
        "broadcast_start", "开播时间")),
    Column("room_end", "end", False, True, also=(
        "room_end_time", "room_ended_at", "live_end", "stream_end", "live_end_time", "stream_end_time",
        "broadcast_end", "下播时间")),
)
# Kind of event → what it is called; a word for who does it (user_joined) or for where (join_room) is passed over.
WORDS = {
    "enter": ("enter", "entered", "entry", "join", "joined", "start", "started", "in", "open", "opened", "view_start",
              "play", "watch_start", "connect", "connected", "login", "进入", "加入"),
    "leave": ("leave", "left", "exit", "exited", "end", "ended", "stop", "stopped", "out", "close", "closed", "quit",
              "view_end", "watch_end", "part", "disconnect", "disconnected", "logout", "离开", "退出"),
    "view": ("view", "viewed", "watch", "watched", "click", "clicked", "观看", "点击"),
    "show": ("show", "shown", "impression", "exposure", "expose", "exposed", "曝光"),
    **{name: (name, f"{name}s", f"{name}d", f"{name}ed", *_OTHER_WORDS[name]) for name in EVENT_COUNTS},
    "gift": ("gift", "gifts", "gifted", "send_gift", "gift_sent", "donate", "donated", "donation", "tip", "礼物",
             "打赏")}
EVENT_AFFIXES = r"^(?:user|viewer|member|audience)_|_(?:room|stream|live|channel|broadcast|event)$"
