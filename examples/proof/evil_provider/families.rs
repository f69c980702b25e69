//! The ground truth: every family of tokens, what was presented of it how often, and whether it lives.

use std::collections::{HashMap, HashSet};

/// How long after its answer a client may still be writing it down, in milliseconds: on a machine that is busy with many of
/// them.
const WRITING: i64 = 1000;

/// What happens to a refresh token when it is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// The same one stays good, and is not repeated in the answer.
    Keeps,
    /// A new one each time. The one before is accepted for so many milliseconds after its first use, for another new one,
    /// until one of those that it was replaced by is used. Then using it, or another of those, ends the family.
    Graced(i64),
    /// A new one each time; using an old one ends the family.
    Strict,
}

/// Why a family is dead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Death {
    /// A refresh token was used that had been replaced.
    Reused {
        /// Which one.
        generation: u64,
        /// Which was the newest then.
        newest: u64,
    },
    /// It was revoked, by its client or by a test.
    Revoked,
}

/// The tokens that came of one consent.
#[derive(Debug, Clone)]
pub struct Family {
    /// Whose account it is.
    pub account: String,
    /// None: it lives.
    pub death: Option<Death>,
    /// How often the refresh token of each generation was presented; the first generation stands first.
    pub presented: Vec<u32>,
    /// When each was first accepted, for which each was given, and which of those given for it was used first.
    spent_at: Vec<Option<i64>>,
    given_for: Vec<u64>,
    followed_by: Vec<Option<u64>>,
    /// When each access token ends, by the provider's clock.
    access_ends: Vec<i64>,
    /// Requests under way, by generation, with the client that made them.
    under_way: Vec<(u64, String)>,
}

impl Family {
    /// The number of the newest generation, beginning with 1.
    pub fn newest(&self) -> u64 {
        self.presented.len() as u64
    }
}

/// A refresh token or an access token, as a family and a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Which {
    pub family: usize,
    pub generation: u64,
}

/// What became of a refresh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refreshed {
    /// These are the tokens now.
    Tokens(Which),
    /// `invalid_grant`.
    Refused,
}

/// Everything that was ever given out.
#[derive(Default)]
pub struct Families {
    families: Vec<Family>,
    codes: HashMap<String, String>,
    /// Clients that are being killed.
    doomed: HashSet<String>,
    /// What each client was answered, and when.
    answered: HashMap<String, Vec<(Which, i64)>>,
    /// Refresh tokens that were presented while the same one was under way for another client that lives.
    pub concurrent: u64,
    /// Requests for a refresh.
    pub refreshes: u64,
    /// The longest that it took until a token was presented again whose answer had been lost, in milliseconds.
    pub slowest: i64,
}

impl Families {
    pub fn all(&self) -> &[Family] {
        &self.families
    }

    /// The newest family of an account.
    pub fn of(&self, account: &str) -> Option<&Family> {
        self.families.iter().rev().find(|family| family.account == account)
    }

    /// How many are dead because an old token was used.
    pub fn lost(&self) -> usize {
        self.families.iter().filter(|family| matches!(family.death, Some(Death::Reused { .. }))).count()
    }

    /// How often a refresh token was presented that had been presented before.
    pub fn again(&self) -> u64 {
        self.families.iter().flat_map(|f| &f.presented).map(|count| u64::from(count.saturating_sub(1))).sum()
    }

    pub fn begin(&mut self, account: &str, access_ends: i64) -> Which {
        self.families.push(Family {
            account: account.to_owned(),
            death: None,
            presented: vec![0],
            spent_at: vec![None],
            given_for: vec![0],
            followed_by: vec![None],
            access_ends: vec![access_ends],
            under_way: Vec::new(),
        });
        Which { family: self.families.len() - 1, generation: 1 }
    }

    pub fn keep_code(&mut self, code: String, account: String) {
        self.codes.insert(code, account);
    }

    pub fn spend_code(&mut self, code: &str) -> Option<String> {
        self.codes.remove(code)
    }

    /// Notes that a refresh token arrived, before anything comes of it.
    pub fn arrived(&mut self, which: Which, client: &str) {
        self.refreshes += 1;
        let family = &mut self.families[which.family];
        family.presented[which.generation as usize - 1] += 1;
        // What a client sends while it dies may arrive when it is dead, and another has gone on.
        let alive = |who: &str| !self.doomed.contains(who);
        if alive(client) && family.under_way.iter().any(|(g, who)| *g == which.generation && alive(who)) {
            self.concurrent += 1;
        }
        family.under_way.push((which.generation, client.to_owned()));
    }

    /// Notes that its request is over.
    pub fn left(&mut self, which: Which, client: &str, now: i64) {
        let under_way = &mut self.families[which.family].under_way;
        if let Some(at) = under_way.iter().position(|(g, c)| *g == which.generation && c == client) {
            under_way.swap_remove(at);
            let answered = self.answered.entry(client.to_owned()).or_default();
            answered.retain(|(_, at)| now - at <= WRITING);
            answered.push((which, now));
        }
    }

    /// Notes that a client is about to be killed, or is another one now.
    pub fn doom(&mut self, client: &str, doomed: bool) {
        if doomed {
            self.doomed.insert(client.to_owned());
        } else {
            self.doomed.remove(client);
        }
    }

    /// Notes that a client has died: what it asked for is nobody's any more. These are the exchanges that it may not have
    /// written down.
    pub fn died(&mut self, client: &str, now: i64) -> Vec<Which> {
        let answered = self.answered.remove(client).unwrap_or_default();
        let mut unwritten: Vec<Which> =
            answered.into_iter().filter(|(_, at)| now - at <= WRITING).map(|(which, _)| which).collect();
        for (number, family) in self.families.iter_mut().enumerate() {
            family.under_way.retain(|(generation, who)| {
                if who == client {
                    unwritten.push(Which { family: number, generation: *generation });
                }
                who != client
            });
        }
        unwritten
    }

    pub fn refresh(&mut self, rotation: Rotation, which: Which, now: i64, access_ends: i64) -> Refreshed {
        let family = &mut self.families[which.family];
        let newest = family.newest();
        if family.death.is_some() {
            return Refreshed::Refused;
        }
        let at = which.generation as usize - 1;
        let before = family.given_for[at].checked_sub(1).map(|before| before as usize);
        let accepted = match rotation {
            Rotation::Keeps => true,
            Rotation::Strict => which.generation == newest,
            Rotation::Graced(grace) => match family.spent_at[at] {
                None => before.is_none_or(|before| family.followed_by[before].is_none()),
                Some(first) => now - first <= grace && family.followed_by[at].is_none(),
            },
        };
        if let Some(first) = family.spent_at[at]
            && family.followed_by[at].is_none()
        {
            self.slowest = self.slowest.max(now - first);
        }
        if !accepted {
            family.death = Some(Death::Reused { generation: which.generation, newest });
            return Refreshed::Refused;
        }
        if rotation == Rotation::Keeps {
            family.access_ends[0] = access_ends;
            return Refreshed::Tokens(which);
        }
        if family.spent_at[at].is_none() {
            family.spent_at[at] = Some(now);
            if let Some(before) = before {
                family.followed_by[before] = Some(which.generation);
            }
        }
        family.presented.push(0);
        family.spent_at.push(None);
        family.given_for.push(which.generation);
        family.followed_by.push(None);
        family.access_ends.push(access_ends);
        Refreshed::Tokens(Which { family: which.family, generation: family.newest() })
    }

    /// Whether an access token is accepted.
    pub fn accepts(&self, which: Which, now: i64) -> bool {
        self.families.get(which.family).is_some_and(|family| {
            family.death.is_none()
                && family.access_ends.get(which.generation as usize - 1).is_some_and(|end| now < *end)
        })
    }

    pub fn account(&self, which: Which) -> &str {
        &self.families[which.family].account
    }

    pub fn knows(&self, which: Which) -> bool {
        self.families.get(which.family).is_some_and(|f| (1..=f.newest()).contains(&which.generation))
    }

    pub fn revoke(&mut self, family: usize) {
        self.families[family].death.get_or_insert(Death::Revoked);
    }
}
