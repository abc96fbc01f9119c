//! Numbers of the kernel's interface (`linux/netfilter/nf_tables.h`) and of nft's user data.

/// The subsystem's number.
pub(crate) const SUBSYSTEM: u8 = 10;

/// Length of `struct nfgenmsg`, which starts every message.
pub(crate) const HEADER_LEN: usize = 4;

/// Message types; the subsystem goes into the upper byte.
pub(crate) mod message {
    use super::SUBSYSTEM;

    const fn of(number: u16) -> u16 {
        (SUBSYSTEM as u16) << 8 | number
    }

    pub(crate) const NEW_TABLE: u16 = of(0);
    pub(crate) const GET_TABLE: u16 = of(1);
    pub(crate) const DELETE_TABLE: u16 = of(2);
    pub(crate) const NEW_CHAIN: u16 = of(3);
    pub(crate) const GET_CHAIN: u16 = of(4);
    pub(crate) const DELETE_CHAIN: u16 = of(5);
    pub(crate) const NEW_RULE: u16 = of(6);
    pub(crate) const GET_RULE: u16 = of(7);
    pub(crate) const DELETE_RULE: u16 = of(8);
    pub(crate) const NEW_SET: u16 = of(9);
    pub(crate) const GET_SET: u16 = of(10);
    pub(crate) const DELETE_SET: u16 = of(11);
    pub(crate) const NEW_ELEMENTS: u16 = of(12);
    pub(crate) const GET_ELEMENTS: u16 = of(13);
    pub(crate) const DELETE_ELEMENTS: u16 = of(14);
    pub(crate) const NEW_GENERATION: u16 = of(15);
    pub(crate) const GET_GENERATION: u16 = of(16);
}

/// `NLM_F_*` of requests that make something.
pub(crate) mod flag {
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// `NFTA_TABLE_*`
pub(crate) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const USES: u16 = 3;
    pub(crate) const HANDLE: u16 = 4;
    pub(crate) const USER_DATA: u16 = 6;
    pub(crate) const OWNER: u16 = 7;
}

/// `NFTA_CHAIN_*`
pub(crate) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const HANDLE: u16 = 2;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const USES: u16 = 6;
    pub(crate) const KIND: u16 = 7;
    pub(crate) const USER_DATA: u16 = 12;
}

/// `NFTA_HOOK_*`
pub(crate) mod hook {
    pub(crate) const NUMBER: u16 = 1;
    pub(crate) const PRIORITY: u16 = 2;
}

/// `NFTA_RULE_*`
pub(crate) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const HANDLE: u16 = 3;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const USER_DATA: u16 = 7;
}

/// `NFTA_LIST_ELEM`, the type of most lists' items.
pub(crate) const LIST_ITEM: u16 = 1;

/// `NFTA_SET_*`
pub(crate) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESCRIPTION: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const TIMEOUT: u16 = 11;
    pub(crate) const GC_INTERVAL: u16 = 12;
    pub(crate) const USER_DATA: u16 = 13;
    pub(crate) const HANDLE: u16 = 16;
    pub(crate) const EXPRESSION: u16 = 17;

    /// `NFT_SET_*`; those that callers choose are in [`crate::SetFlags`].
    pub(crate) const MAP: u32 = 0x08;
    pub(crate) const CONCAT: u32 = 0x80;
    /// `NFT_DATA_VERDICT`, the data type of verdict maps.
    pub(crate) const VERDICT: u32 = 0xffff_ff00;
}

/// `NFTA_SET_DESC_*` and `NFTA_SET_FIELD_LEN`
pub(crate) mod description {
    pub(crate) const SIZE: u16 = 1;
    pub(crate) const CONCAT: u16 = 2;
    pub(crate) const FIELD_LEN: u16 = 1;
}

/// `NFTA_SET_ELEM_LIST_*`
pub(crate) mod elements {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const SET: u16 = 2;
    pub(crate) const LIST: u16 = 3;
    pub(crate) const SET_ID: u16 = 4;
}

/// `NFTA_SET_ELEM_*`
pub(crate) mod element {
    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const EXPIRES: u16 = 5;
    pub(crate) const USER_DATA: u16 = 6;
    pub(crate) const EXPRESSION: u16 = 7;
    pub(crate) const KEY_END: u16 = 10;

    pub(crate) const INTERVAL_END: u32 = 1;
}

/// `NFTA_DATA_*` and `NFTA_VERDICT_*`
pub(crate) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;
    pub(crate) const CODE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
}

/// `NFTA_EXPR_*`
pub(crate) mod expression {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const DATA: u16 = 2;
}

/// `NFTA_GEN_*`
pub(crate) mod generation {
    pub(crate) const ID: u16 = 1;
}

/// What nft keeps in user data (`NFTNL_UDATA_*`), so that it can list what was written.
pub(crate) mod user_data {
    /// Of tables, chains, rules and elements.
    pub(crate) const COMMENT: u8 = 0;

    pub(crate) mod set {
        pub(crate) const KEY_BYTE_ORDER: u8 = 0;
        pub(crate) const DATA_BYTE_ORDER: u8 = 1;
        pub(crate) const MERGE: u8 = 2;
        pub(crate) const KEY_TYPEOF: u8 = 3;
        pub(crate) const DATA_TYPEOF: u8 = 4;
        pub(crate) const DATA_INTERVAL: u8 = 6;
        pub(crate) const COMMENT: u8 = 7;
    }

    pub(crate) mod type_of {
        pub(crate) const EXPRESSION: u8 = 0;
        pub(crate) const DESCRIPTION: u8 = 1;

        /// Kinds of expressions.
        pub(crate) const VERDICT: u32 = 1;
        pub(crate) const PAYLOAD: u32 = 7;
        pub(crate) const META: u32 = 9;
        pub(crate) const CT: u32 = 12;
        pub(crate) const CONCAT: u32 = 13;
        pub(crate) const NUMGEN: u32 = 23;

        /// Headers.
        pub(crate) const TRANSPORT: u32 = 11;
        pub(crate) const IPV4: u32 = 12;
        pub(crate) const IPV6: u32 = 13;
    }
}
